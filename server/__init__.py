"""What runs at the coordinator. No image library, and no pixel comes here."""
