"""Report: one self-contained page of what run folders hold. Reads files, computes nothing, imports no torch."""

__all__ = ["damages", "write_report"]

from iresnet.report.page import damages, write_report
