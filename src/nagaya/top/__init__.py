"""`nagaya top`: rows from two answers of the daemon, and the screen that shows them."""
