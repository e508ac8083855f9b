"""The report: one self-contained page of what a run folder holds; reads files, computes nothing, needs no torch."""

__all__ = ["damages", "write_report"]

from iresnet.report.page import damages, write_report
