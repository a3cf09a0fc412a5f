"""From a proposed run to a hospital's answer: who signed it, what it would mean, is it within the policy."""
