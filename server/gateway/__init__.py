"""The door: Flower's Fleet service and ours behind mutual TLS, limits, enrolment, what waits for a site."""
