"""Who somebody is: certificates, rotation of the root, invitations, operators' signatures."""
