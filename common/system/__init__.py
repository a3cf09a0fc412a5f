"""What the operating system gives: durable files, locks, databases, namespaces, environments, hints."""
