"""Studies: several arms over several seeds, one DVC experiment each, and the page that compares them."""
