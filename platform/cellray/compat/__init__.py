"""Interfaces of other packages over this one: notebooks written for them run with another import and few changes.

Written from those packages' documented interfaces alone. Each class names its options as they do and does each by the
functions of the jobs; what cannot be done is refused with what to use instead. See `docs/compat.md`.
"""
