"""Settings for new data: what ``dcn-det init`` proposes."""
