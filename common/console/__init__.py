"""What the command lines share: errors in one message, tables, progress, logs, the doctor."""
