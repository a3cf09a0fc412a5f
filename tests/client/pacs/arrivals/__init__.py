"""client/pacs/arrivals: studies that senders bring in order, in pieces, broken, or not at all."""
