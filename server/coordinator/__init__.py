"""The processes of a coordinator, and the open runs: started, watched, started again."""
