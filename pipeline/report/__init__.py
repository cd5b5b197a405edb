"""One page about all runs: read what the stages wrote, judge it, draw it, put it into one file.

reader      files that may be missing or damaged: each becomes a value or a named gap, never a crash
runs        what is known about one fine-tuned run, from five stages
dataset     categories and their repeat factors
verdict     did the tail get better, by how much, and can it be chance
pictures    validation images of the hardest tail categories, with the boxes of every run
own_runs    our runs as rows of the paper's tables
efficiency  time and memory of each stage (Table A.4)
collect     all of it as one `Report`
page        a `Report` as one html file, which needs no network

The page itself is page.html, report.css and the scripts beside this file: charts are drawn in the browser
from the data inside the page, so that its filter reaches all of them.
"""
