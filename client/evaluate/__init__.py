"""How good a model is on a site's own labelled patients, told to the site alone.

Studies come through the pipeline of training (`client.data.survey`), are answered as a prediction answers them, and are
scored on their own grid. What is written names pseudonyms, shows images, and stays here. Imports `client.data`,
`client.predict`, `client.home` and `common`; no network.
"""
