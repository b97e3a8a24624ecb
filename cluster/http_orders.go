package cluster

import (
	"errors"
	"net/http"
)

var errNoOrders = errors.New("this node takes no orders yet")

// orders answers GET /v1/orders[?all=1].
func (p *webPort) orders(w http.ResponseWriter, r *http.Request) {
	failNode(w, errNoOrders)
}

// openOrder answers POST /v1/orders.
func (p *webPort) openOrder(w http.ResponseWriter, r *http.Request) {
	if _, err := p.admin(r); err != nil {
		fail(w, http.StatusForbidden, err)
		return
	}
	failNode(w, errNoOrders)
}

// thawOrders answers POST /v1/orders/thaw.
func (p *webPort) thawOrders(w http.ResponseWriter, r *http.Request) {
	if _, err := p.admin(r); err != nil {
		fail(w, http.StatusForbidden, err)
		return
	}
	failNode(w, errNoOrders)
}
