// evaluate: asks every query of the dashboard of a small made-up day, with Prometheus' own engine, and prints the answers as
// JSON for draw.py: evaluate DASHBOARD.json > ANSWERS.json
//
// The day: assets come in two waves; workers go from none to four and back; one picture store is down for ten minutes.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strings"
	"time"

	"github.com/prometheus/common/promslog"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
)

const (
	hours  = 3
	scrape = 15 * time.Second
	step   = 30 * time.Second
)

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "evaluate:", err)
		os.Exit(1)
	}
}

// day holds the running totals of all series and writes them at each scrape.
type day struct {
	totals   map[string]float64
	appender storage.Appender
	at       int64
}

func (d *day) set(value float64, name string, pairs ...string) {
	all := append([]string{labels.MetricName, "assay_" + name, "namespace", "assay"}, pairs...)
	_, err := d.appender.Append(0, labels.FromStrings(all...), d.at, value)
	must(err)
}

func (d *day) add(rate float64, name string, pairs ...string) {
	key := name + strings.Join(pairs, "\x00")
	d.totals[key] += rate * scrape.Seconds()
	d.set(math.Floor(d.totals[key]*1000)/1000, name, pairs...)
}

// spread adds observations of a histogram around a typical value.
func (d *day) spread(rate, typical float64, bounds []float64, name string, pairs ...string) {
	d.add(rate, name+"_count", pairs...)
	d.add(rate*typical, name+"_sum", pairs...)
	for _, bound := range bounds {
		below := 1 / (1 + math.Pow(typical/bound, 3))
		d.add(rate*below, name+"_bucket", append(pairs, "le", fmt.Sprint(bound))...)
	}
	d.add(rate, name+"_bucket", append(pairs, "le", "+Inf")...)
}

func exponential(start float64, count int) []float64 {
	bounds := make([]float64, count)
	for i := range bounds {
		bounds[i] = start * math.Pow(2, float64(i))
	}
	return bounds
}

func wave(t, middle, width float64) float64 { return math.Exp(-math.Pow((t-middle)/width, 2)) }

// live writes what all workers say at one moment; t runs from 0 to 1 over the day.
func (d *day) live(t float64, lag *float64, workers *float64) {
	seconds, tokens := exponential(0.0005, 17), exponential(16, 14)
	arriving := 15 + 280*wave(t, 0.35, 0.1) + 180*wave(t, 0.75, 0.06)
	wanted := math.Min(4, math.Ceil(*lag/5000))
	*workers += math.Copysign(math.Min(math.Abs(wanted-*workers), 0.02), wanted-*workers)
	count := math.Ceil(*workers)
	outage := t > 0.52 && t < 0.575
	rate := math.Min(*lag/scrape.Seconds()+arriving, count*85*(1+0.05*math.Sin(t*300)))
	if outage {
		rate *= 0.15
	}
	*lag = math.Max(0, *lag+(arriving-rate)*scrape.Seconds())
	busy := rate / math.Max(1, count*85)
	job := []string{"job", "product-embedding"}

	d.add(rate, "records_total", job...)
	d.add(rate*0.985, "outcomes_total", append(job, "outcome", "annotated")...)
	d.add(rate*0.002, "outcomes_total", append(job, "outcome", "removed")...)
	d.add(rate*0.013, "outcomes_total", append(job, "outcome", "rejected")...)
	for i, share := range []float64{0.006, 0.004, 0.003} {
		reason := [][2]string{{"decode", "schema_violation"}, {"fetch", "media_not_found"}, {"fetch", "picture_undecodable"}}[i]
		d.add(rate*share, "rejections_total", append(job, "stage", reason[0], "reason", reason[1])...)
	}
	d.set(math.Floor(math.Min(4096*count, *lag)), "in_flight_assets", job...)
	full := 0.0
	if *lag > 20000 {
		full = 1
	}
	d.set(full, "flow_paused", job...)
	for partition := range 6 {
		part := *lag / 6 * (1 + 0.25*math.Sin(float64(partition)+t*20))
		d.set(math.Floor(part), "lag_records", append(job, "topic", "products", "partition", fmt.Sprint(partition))...)
	}
	changing := math.Abs(wanted - *workers)
	for _, kind := range []string{"assigned", "revoked"} {
		d.add(math.Min(changing, 1)*0.02, "rebalances_total", append(job, "kind", kind)...)
	}
	d.add(rate*0.987, "rows_committed_total", append(job, "table", "results")...)
	d.add(rate*0.013, "rows_committed_total", append(job, "table", "rejections")...)
	d.spread(count*0.2, 0.35, seconds, "commit_seconds", job...)
	d.add(0.02*count*busy, "commit_retries_total", append(job, "cause", "conflict")...)
	d.add(0, "commit_retries_total", append(job, "cause", "unavailable")...)
	d.add(0, "fenced_partitions_total", job...)
	d.set(float64(d.at)/1000-3, "last_commit_timestamp_seconds", job...)
	for i := range int(math.Max(count, 1)) {
		worker := []string{"instance", fmt.Sprintf("assay-%d:9464", i)}
		each := rate / math.Max(count, 1)
		d.set(1, "device_alive", worker...)
		d.set(float64(d.at/3_600_000)*3600, "start_timestamp_seconds", worker...)
		failing := each * 0.004
		if outage {
			failing = 20
		}
		d.add(each*0.004, "media_errors_total", append(worker, "reason", "media_not_found")...)
		d.add(math.Max(0, failing-each*0.004), "media_errors_total", append(worker, "reason", "media_unavailable")...)
		d.add(each*110_000, "media_read_bytes_total", worker...)
		d.spread(each+failing, 0.045, seconds, "media_fetch_seconds", worker...)
		d.spread(each, 0.011, seconds, "prepare_seconds", worker...)
		d.spread(each/16, 200+3500*busy, tokens, "batch_tokens", worker...)
		d.add(0.9*busy, "device_seconds_total", append(worker, "model", "qwen3-vl")...)
		d.add(0.06*busy, "device_seconds_total", append(worker, "model", "siglip")...)
		d.set(math.Floor(200*busy), "waiting_requests", worker...)
		for _, kind := range []string{"prefill", "decode"} {
			d.spread(12*busy, 0.03, seconds, "engine_step_seconds", append(worker, "kind", kind)...)
		}
		d.set(math.Floor(48*busy), "running_sequences", worker...)
		d.set(math.Floor(30*busy*busy), "waiting_sequences", worker...)
		used := math.Floor(4000 * (0.1 + 0.8*busy))
		d.set(used, "kv_blocks", append(worker, "state", "used")...)
		d.set(4000-used, "kv_blocks", append(worker, "state", "free")...)
		d.add(0.05*busy*busy*busy, "preemptions_total", worker...)
		d.add(each*420, "prefix_cache_tokens_total", append(worker, "result", "hit")...)
		d.add(each*180, "prefix_cache_tokens_total", append(worker, "result", "miss")...)
		d.add(each*0.3, "vision_cache_total", append(worker, "result", "hit")...)
		d.add(each*0.7, "vision_cache_total", append(worker, "result", "miss")...)
		d.add(each*32, "generated_tokens_total", append(worker, "kind", "sampled")...)
		d.add(each*41, "generated_tokens_total", append(worker, "kind", "forced")...)
		d.add(each*0.985, "finished_sequences_total", append(worker, "model", "qwen3-vl", "reason", "stop")...)
		d.add(each*0.015, "finished_sequences_total", append(worker, "model", "qwen3-vl", "reason", "length")...)
	}
}

type answer struct {
	Legend string       `json:"legend"`
	Labels string       `json:"labels"`
	Points [][2]float64 `json:"points"`
}

func main() {
	text, err := os.ReadFile(os.Args[1])
	must(err)
	var dashboard map[string]any
	must(json.Unmarshal(text, &dashboard))

	folder, err := os.MkdirTemp("", "assay-picture")
	must(err)
	defer os.RemoveAll(folder)
	store, err := tsdb.Open(folder, promslog.NewNopLogger(), nil, tsdb.DefaultOptions(), nil)
	must(err)
	end := time.Unix(1_767_265_200, 0)
	start := end.Add(-hours * time.Hour)
	today := &day{totals: map[string]float64{}}
	var lag, workers float64
	for at := start; !at.After(end); at = at.Add(scrape) {
		today.at, today.appender = at.UnixMilli(), store.Appender(context.Background())
		today.live(at.Sub(start).Hours()/hours, &lag, &workers)
		must(today.appender.Commit())
	}

	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 50_000_000, Timeout: time.Minute, Parser: parser.NewParser(parser.Options{})})
	names := strings.NewReplacer("$__rate_interval", "1m", "$namespace", ".*", "$job", ".*", "$price", "2")
	for _, panel := range dashboard["panels"].([]any) {
		targets, _ := panel.(map[string]any)["targets"].([]any)
		for _, raw := range targets {
			target := raw.(map[string]any)
			query, err := engine.NewRangeQuery(context.Background(), store, nil, names.Replace(target["expr"].(string)), start, end, step)
			must(err)
			result := query.Exec(context.Background())
			must(result.Err)
			matrix, err := result.Matrix()
			must(err)
			answers := []answer{}
			for _, series := range matrix {
				legend, _ := target["legendFormat"].(string)
				series.Metric.Range(func(l labels.Label) { legend = strings.ReplaceAll(legend, "{{"+l.Name+"}}", l.Value) })
				one := answer{Legend: legend, Labels: series.Metric.String()}
				for _, point := range series.Floats {
					if !math.IsNaN(point.F) && !math.IsInf(point.F, 0) {
						one.Points = append(one.Points, [2]float64{float64(point.T) / 1000, point.F})
					}
				}
				answers = append(answers, one)
			}
			target["answers"] = answers
		}
	}
	must(json.NewEncoder(os.Stdout).Encode(dashboard))
}
