"""Train without Ray, in a process that a test kills."""

import sys

from cellray.train.pretrain import PretrainConfig
from tests.train.local import train

if __name__ == "__main__":
    train(PretrainConfig.model_validate_json(sys.argv[1]))
