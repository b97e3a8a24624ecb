package cluster

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestHTTPTransfer(t *testing.T) {
	for _, c := range []struct {
		body string
		fail error
		code int
		want string
	}{
		{`{"to":""}`, nil, 200, `{"leader":"n2"}`},
		{`{}`, nil, 200, `{"leader":"n2"}`},
		{`{"to":"n3"}`, nil, 200, `{"leader":"n3"}`},
		{`{"to":"n9"}`, nil, 409, `{"error":"n9 is not in touch"}`},
		{`{"to":"n3"}`, errFake, 503, errFake.Error()},
		{`{"to":"n3","force":true}`, nil, 400, "force"},
		{`{"to":"` + strings.Repeat("n", maxServerName+1) + `"}`, nil, 400, "at most"},
		{``, nil, 400, "read the request"},
	} {
		n, s := fakeWeb(t)
		n.fail = c.fail
		if code, body := post(t, s.URL+"/v1/transfer", c.body); code != c.code || !strings.Contains(body, c.want) {
			t.Errorf("%.40s with error %v: %d %s; want %d %s", c.body, c.fail, code, body, c.code, c.want)
		}
	}
}

func TestHTTPRemove(t *testing.T) {
	const done = `{"id":"id2","name":"n2","addr":"192.0.2.2:1753"}`
	for _, c := range []struct {
		body string
		fail error
		code int
		want string
	}{
		{`{"node":"n2"}`, nil, 200, done},
		{`{"node":"n2","force":false}`, nil, 200, done},
		{`{"node":"n1"}`, nil, 409, `{"error":"n1 is needed"}`},
		{`{"node":"n1","force":true}`, nil, 200, `"name":"n1"`},
		{`{"node":"n2"}`, errFake, 503, errFake.Error()},
		{`{"node":""}`, nil, 400, "which server"},
		{`{}`, nil, 400, "which server"},
		{`{"node":"n2","to":"n3"}`, nil, 400, "to"},
		{`{"node":"` + strings.Repeat("n", maxServerName+1) + `"}`, nil, 400, "at most"},
	} {
		n, s := fakeWeb(t)
		n.fail = c.fail
		if code, body := post(t, s.URL+"/v1/remove", c.body); code != c.code || !strings.Contains(body, c.want) {
			t.Errorf("%.40s with error %v: %d %s; want %d %s", c.body, c.fail, code, body, c.code, c.want)
		}
	}
}

func post(t *testing.T, url, body string) (code int, answer string) {
	t.Helper()
	r, err := http.Post(url, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}
