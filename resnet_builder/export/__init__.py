"""From trained weights to a file that other programs run, checked before it gets its name."""

from resnet_builder.export.exporting import ExportReport, export
from resnet_builder.export.formats import FormatName

__all__ = ["ExportReport", "FormatName", "export"]
