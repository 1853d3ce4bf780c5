"""World models: next tokens, reward and end from a token history and an action.

``model(history_btk, action_b) -> Prediction`` and ``model.loss(Segments) -> (loss, metrics)``;
nothing here sees a pixel. Rewards are raw game points.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from wmfast.config import WorldModelConfig
from wmfast.models.conv_world_model import ConvWorldModel
from wmfast.models.importance import TokenImportance
from wmfast.models.prediction import Prediction, WorldModel
from wmfast.models.transformer_world_model import TransformerWorldModel

__all__ = [
    "ConvWorldModel",
    "Prediction",
    "TransformerWorldModel",
    "WorldModel",
    "build_world_model",
    "weigh_tokens",
]


def build_world_model(config: WorldModelConfig, *, vocab_size: int, num_actions: int) -> WorldModel:
    """The world model that ``config.kind`` names, its weights drawn from the global generator.

    Its loss weighs all tokens alike: see ``weigh_tokens``.
    """
    kind = ConvWorldModel if config.kind == "conv" else TransformerWorldModel
    model: WorldModel = kind(config, vocab_size=vocab_size, num_actions=num_actions)
    model.teacher_forcing = config.teacher_forcing
    model.step_discount = config.step_discount
    return model


def weigh_tokens(
    world_model: WorldModel, config: WorldModelConfig, codes: Callable[[], Tensor]
) -> None:
    """Give the loss token weights by motion, if ``config`` asks for them.

    ``codes`` gives the tokenizer's codes, float (V, D), whenever a loss is computed.
    """
    scales = (config.motion_weight, config.eventness_weight, config.persistence_weight)
    if any(scales):
        motion, eventness, persistence = scales
        world_model.importance = TokenImportance(
            codes,
            motion=motion,
            eventness=eventness,
            persistence=persistence,
            cap=config.importance_cap,
        )
