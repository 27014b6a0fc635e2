"""The inside of a Mamba layer after its in-projection, as one op: what is cheap to compute again is not kept."""

from mambabyte.ops.mixer.contract import mixer as mixer
