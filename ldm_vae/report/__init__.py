"""A run as one HTML file; `templates/` holds the page, its style and its script.

run.py           A run folder -> what it says of itself (recipe, status, log, results, diagnostics), and what it
                 lacks
results.py       Results.json -> typed numbers: metrics of the codec and of what it is held against, image by
                 image
numbers.py       How numbers, sentences and foreign names are written on the page
curves.py        Rows of metrics.jsonl, of one run or several -> charts: what belongs together, on which scale,
                 in which unit
charts.py        A chart of findings -> SVG that takes its colours and font from the page, its legend, and its
                 numbers as a table
svg.py           Matplotlib's SVG -> an element of the page: its colours and font, names of its own, an
                 alternative text
pictures.py      Arrays -> pictures inside a page: lossless WebP as data URIs, and colour maps for what has no
                 colours of its own
gallery.py       A codec and held-out shards -> a few images, their reconstructions and latents: the worst, the
                 median, the best
album.py         Images of the gallery -> what the page embeds of them, within a number of bytes
diagnosis.py     An inspection -> what the page shows of it: verdicts first, then numbers, charts, matrices,
                 pictures
tables.py        Results of one run or several -> the tables of the page
environment.py   Where the report was made: versions and machine. What the run knows of its own machine stands
                 in its status
page.py          Runs -> one HTML file that holds all it shows, and asks nothing of any network
"""
