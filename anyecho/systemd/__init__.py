"""Socket activation and sd_notify(3), for the command line and for the supervisor."""
