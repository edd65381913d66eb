"""Socket activation and sd_notify(3). Only the command line uses them."""
