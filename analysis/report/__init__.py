"""All that a fit says, as one self-contained page or as Markdown.

Nothing here samples, but for a report with backtests.
"""
