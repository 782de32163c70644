"""Figures of the notebooks: grids and strips of pictures, schedules, losses.

Pictures are stored squeezed into squares and *shown* at 4:3 (`aspect`), where wheels are round.
`picture_grid` turns a batch into one numpy picture; files, figures and widgets are all made from it.

The functions that return a `Figure` need no `plt.show()`: put the call on the last line of a cell,
or hand the figure to `display`. Each figure is already closed for pyplot, so that Jupyter does not
draw it a second time and none piles up in memory; `figure.savefig(path)` works as ever, and `figure.alt`
says in words what it shows, which Jupyter stores beside the picture. The style
applies to these figures alone: importing this module leaves matplotlib's settings untouched.
"""

from diffusion_utils.plotting.charts import curves, dots, heat_map, loss_curves, points, schedule_curves
from diffusion_utils.plotting.drawings import network_drawing
from diffusion_utils.plotting.pictures import picture_format, picture_grid, save_grid, save_picture, show_grid, strip
