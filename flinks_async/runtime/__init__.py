"""State that belongs to an event loop: cancel scopes, the deadline timer, and what the calls of one client share."""
