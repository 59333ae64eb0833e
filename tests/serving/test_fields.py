"""Names that are unknown: told with the one that was probably meant, or with all there are."""

import pytest
from pydantic import BaseModel, ValidationError

from cellray.api.schema import EmbeddingRequest, PerturbationRequest, PredictionRequest
from serving.config import ServingConfig
from serving.faults import answerable
from serving.fields import names_at

CELL = {"id": "a", "counts": [1]}


@pytest.mark.parametrize(
    ("model", "body", "told"),
    [
        (
            EmbeddingRequest,
            {"cells": [CELL], "poolng": "cls"},
            "poolng: there is no such name here (did you mean pooling?)",
        ),
        (
            PredictionRequest,
            {"cells": [CELL], "top": 3},
            "top: there is no such name here (known: model, genes, cells)",
        ),
        (
            PerturbationRequest,
            {"cells": [CELL, CELL | {"indces": [0]}]},
            "cells.1.indces: there is no such name here (did you mean indices?)",
        ),
    ],
)
def test_a_request_is_told_the_parameters_there_are(model: type[BaseModel], body: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    assert answerable(caught.value).message == told


def test_names_are_those_of_their_place() -> None:
    assert "uri" in names_at(ServingConfig, ("models", "uri", "url"))  # a model may be called as an option is
    assert names_at(ServingConfig, ("access", "key")) == ["auth", "keys_file", "requests_per_minute"]
    assert "ingress_cpus" in names_at(ServingConfig, ("x",))
