"""The pages that people begin with: each block is tested as it says, and the site that is made of all pages."""
