"""Pages that a browser opens from the disk, without a network: of a pair, of a cohort, and of other results.

`write_page` fills a template; everything that a template shows is escaped. `cohort_page` shows rows of measures, worst
first; `pair_page` shows one pair, or two time points. Images of the body are those of `make_views` and `change_views`,
which pages can blink.
"""
