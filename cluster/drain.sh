#!/bin/bash
# Runs in a worker's container before Kubernetes stops it (preStop): cellray-drain [SECONDS [OPTIONS OF ray drain-node]]
#
# Tells Ray that this node goes away, as a cloud does two minutes before it takes a spot machine back. Ray then gives the
# node no more work, a training run writes a checkpoint, and replicas of Serve are replaced. Waits until nothing runs
# here any more, at most SECONDS: terminationGracePeriodSeconds of the pod must be longer. A node without work is left at
# once, so the autoscaler's own scaling down costs no waiting.
set -u
seconds=${1:-90}
until=$((SECONDS + seconds))

# Idle workers keep the title ray::IDLE; agents of Ray itself end with the node.
busy() { pgrep -af '^ray::' | grep -vE 'ray::(IDLE|DashboardAgent|RuntimeEnvAgent)' > /dev/null; }

# Draining is an offer: what goes on without it is made up for by retries and checkpoints, so a failure ends nothing.
timeout 20 ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "the pod is being deleted" \
  --deadline-remaining-seconds "$seconds" "${@:2}" || echo "cellray-drain: Ray could not be told" >&2
while busy && [ "$SECONDS" -lt "$until" ]; do
  sleep 1
done
exit 0
