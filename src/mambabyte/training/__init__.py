"""Training: one process, one model, any bytes; stops and resumes without a trace."""

from mambabyte.training.api import TrainResult as TrainResult
from mambabyte.training.api import train as train
from mambabyte.training.config import TrainConfig as TrainConfig
from mambabyte.training.loop import Evaluator as Evaluator
from mambabyte.training.loop import Sampler as Sampler
from mambabyte.training.progress import Listener as Listener
from mambabyte.training.progress import Now as Now
from mambabyte.training.progress import display as display
