"""Who may do what and what was decided: sites, operators, proposals; an act is signed and recorded, then done."""
