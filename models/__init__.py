"""The course models: catalogue, data, training, shipped weights and samples.

The catalogue and the data are plain Python and NumPy; TensorFlow is imported only when a model is
built or trained.
"""

from .catalogue import CATALOGUE, ModelCard, card

__all__ = ["CATALOGUE", "ModelCard", "card"]
