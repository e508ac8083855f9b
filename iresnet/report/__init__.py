"""The report: one self-contained page of what a run folder holds; reads files, computes nothing, needs no torch."""

__all__ = ["write_report"]

from iresnet.report.page import write_report
