// Package discover finds instances as a search asks for them: prepared queries,
// and the order of nearness that they and the API's ?near share.
//
// It owns how a stored query is resolved, rendered, executed and failed over. It
// never knows who asked, over HTTP or DNS, nor how views are read: a Reader is
// given to it.
package discover
