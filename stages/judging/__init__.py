"""The judge: what it is asked, how its verdicts are read, what needs no judge, its exam."""
