"""What a hospital allows: its policy, its approvals, which scores it gives, the gate that updates pass. No torch."""
