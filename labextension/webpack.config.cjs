// The usual ids of modules depend on the path of the folder that is built; the order does not.
module.exports = { optimization: { moduleIds: 'natural', chunkIds: 'natural' } };
