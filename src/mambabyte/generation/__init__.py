"""Generation: sampling, engines, decoding of rows that come and go."""

from mambabyte.generation.api import Stream as Stream
from mambabyte.generation.api import generate as generate
from mambabyte.generation.api import stream as stream
from mambabyte.generation.cursor import Cursor as Cursor
from mambabyte.generation.decoder import Decoder as Decoder
from mambabyte.generation.drafters import ByteDrafter as ByteDrafter
from mambabyte.generation.drafters import Drafter as Drafter
from mambabyte.generation.drafters import LookupDrafter as LookupDrafter
from mambabyte.generation.engine import Engine as Engine
from mambabyte.generation.engine import open_engine as open_engine
from mambabyte.generation.prefix_cache import PrefixCache as PrefixCache
from mambabyte.generation.sampling import Sampling as Sampling
from mambabyte.generation.sampling import SamplingOptions as SamplingOptions
from mambabyte.generation.subword_drafter import SubwordDrafter as SubwordDrafter
