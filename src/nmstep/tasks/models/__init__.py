"""The networks of the built-in tasks, in plain torch."""

from nmstep.tasks.models.densenet import DenseNet, densenet121
from nmstep.tasks.models.digits_cnn import DigitsCNN
from nmstep.tasks.models.gpt import GPT, Conv1D
from nmstep.tasks.models.resnet import ResNet18, ResNet20

__all__ = ["GPT", "Conv1D", "DenseNet", "DigitsCNN", "ResNet18", "ResNet20", "densenet121"]
