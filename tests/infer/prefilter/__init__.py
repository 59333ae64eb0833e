"""Tests of cellray.infer.prefilter."""
