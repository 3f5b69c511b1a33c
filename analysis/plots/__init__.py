"""Pictures of answers: forecasts with intervals, which method is best, where curves cross.

The functions ``plot_*`` take an Axes and a table and return the Axes. The functions ``*_figure``
ask a fit for what the picture needs and return a Figure. Nothing here touches pyplot, so no state
leaks and no display is needed.
"""
