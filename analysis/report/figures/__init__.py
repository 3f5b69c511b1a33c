"""The figures of a report's page, as Vega specifications with the numbers that they show.

A figure is a dictionary; its data set ``table`` is what the button beside it saves as CSV. The
page's script gives each one its width and the colours of the reader's theme (``ink``, ``faint``
and ``paper``).
"""
