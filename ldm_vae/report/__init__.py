"""A run as one HTML file; `templates/` holds the page, its style and its script.

run.py           Reads a run folder (recipe, status, log, results, diagnostics), and lists what it lacks
weights.py       The codec of a run's newest whole checkpoint, and its weights by hash and step
evaluations.py   Chooses from results.json what is about the weights that a run has now
numbers.py       Writes numbers, sentences and names for the page
curves.py        Makes charts from the logs of one run or several
charts.py        Draws a chart as SVG, with its legend, a table of its numbers and a text alternative
svg.py           Fits matplotlib's SVG into the page: colours, font, unique names
pictures.py      Turns arrays into embedded pictures, with colour maps where they have no colours
gallery.py       Reconstructs a few held-out images: the worst, the median and the best
album.py         Embeds the images of the gallery, within a number of bytes
diagnosis.py     Prepares an inspection for the page: verdicts, numbers, charts, matrices, pictures
tables.py        Prepares the tables of metrics, images and differences
comparison.py    Sets runs side by side: metrics of the same images, values of the logs, recipes
environment.py   Versions and machine with which the report is made
page.py          Collects everything and writes the HTML file
"""
