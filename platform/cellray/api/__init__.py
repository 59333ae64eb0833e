"""What a server of models and its clients share: requests, answers and their binary form. No Ray, torch or MLflow."""
