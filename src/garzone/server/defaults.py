"""What a model's own PARAMETER lines say about sampling, before a request says otherwise. Pure."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from garzone.core.generation import SamplingParams
from garzone.server.dialects.ollama_options import Options

_log = logging.getLogger(__name__)


def sampling_of(parameters: Mapping[str, Sequence[str]]) -> SamplingParams:
    """What a model's PARAMETER lines say about sampling; a line that cannot be understood is left out, and logged."""
    defaults = SamplingParams()
    for name in parameters.keys() & Options.model_fields.keys():
        values = list(parameters[name])
        try:
            defaults = Options.model_validate({name: values if name == "stop" else values[-1]}).over(defaults)
        except (ValidationError, IndexError) as error:
            _log.warning("PARAMETER %s %s of the model is not understood: %s", name, values, error)
    return defaults
