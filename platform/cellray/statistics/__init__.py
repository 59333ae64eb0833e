"""Statistics of in silico perturbation screens: from shifts, one row a cell and perturbation, to gene tables.

One mode a file. All read a `ShiftStream` part by part, as often as needed, and keep numbers per gene only. Column names
are the official ones where the official statistics have them; what is ours has names of its own.
"""
