"""Pages that a browser opens from the disk, without a network: of a pair, of a cohort, and of other results.

`write_page` fills a template; everything that a template shows is escaped. `cohort_page` shows rows of measures, worst
first; `pair_page` shows one pair. Images of the body are `make_views`, which both pages can blink.
"""
