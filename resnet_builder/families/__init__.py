"""New specs of the papers' networks: a family, a depth and a data set make the text of one."""

from resnet_builder.families.networks import PICTURES, Wish, default_name
from resnet_builder.families.table import FAMILIES, Depths, Family
from resnet_builder.families.writing import new_spec

__all__ = ["FAMILIES", "PICTURES", "Depths", "Family", "Wish", "default_name", "new_spec"]
