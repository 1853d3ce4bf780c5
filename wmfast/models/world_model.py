"""World models: next tokens, reward and end from a token history and an action.

``model(history_btk, action_b) -> Prediction`` and ``model.loss(Segments) -> (loss, metrics)``;
nothing here sees a pixel. Rewards are raw game points.
"""

from __future__ import annotations

from wmfast.config import WorldModelConfig
from wmfast.models.conv_world_model import ConvWorldModel
from wmfast.models.prediction import Prediction, WorldModel
from wmfast.models.transformer_world_model import TransformerWorldModel

__all__ = [
    "ConvWorldModel",
    "Prediction",
    "TransformerWorldModel",
    "WorldModel",
    "build_world_model",
]


def build_world_model(config: WorldModelConfig, *, vocab_size: int, num_actions: int) -> WorldModel:
    """The world model that ``config.kind`` names, its weights drawn from the global generator."""
    if config.kind == "conv":
        return ConvWorldModel(config, vocab_size=vocab_size, num_actions=num_actions)
    return TransformerWorldModel(config, vocab_size=vocab_size, num_actions=num_actions)
