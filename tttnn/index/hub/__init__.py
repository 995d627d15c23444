"""An index on the Hub: pushed, pulled, or left there but for a few bytes."""
